package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"
)

const (
	maxKeyFile = 1 << 20 // bytes of a file of keys
	// workFactor is the logarithm of scrypt's cost: 64 MiB and a quarter of a second.
	workFactor = 16
	// maxWorkFactor bounds what a key file may cost: who has the storage can put more there.
	maxWorkFactor = 18
)

var (
	// errNoTerminal says that a passphrase is needed and nobody can be asked.
	errNoTerminal = errors.New("the vault is encrypted, and there is no terminal to ask for the passphrase")
	// errPassphrase says that a passphrase cannot be used.
	errPassphrase = errors.New("passphrase")
)

// keys returns what opens a vault.
func (f *vaultFlags) keys(ctx context.Context) (all []age.Identity, err error) {
	for _, path := range f.identities {
		b, err := readKeyFile(path)
		if err != nil {
			return nil, err
		}
		some, err := parseIdentities(ctx, path, b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, some...)
	}
	if len(all) > 0 && f.passphraseFile == "" && f.passphraseCommand == "" {
		return all, nil
	}
	text, err := f.passphrase(ctx, "Passphrase of the vault")
	if err != nil {
		return nil, err
	}
	id, err := age.NewScryptIdentity(text)
	if err != nil {
		return nil, err
	}
	id.SetMaxWorkFactor(maxWorkFactor)
	return append(all, id), nil
}

// recipients returns for whom a new key is: those that were given, or a passphrase. That in the
// environment is the one of a vault that is made, and not another one.
func (f *vaultFlags) recipients(ctx context.Context, given []string, first bool) (all []age.Recipient, err error) {
	if len(given) > 0 && (f.passphraseFile != "" || f.passphraseCommand != "") {
		return nil, usagef("a key is for recipients or for a passphrase: add the other with \"tidemark vault key add\"")
	}
	for _, text := range given {
		some, err := parseRecipients(text)
		if err != nil {
			return nil, usageError{fmt.Errorf("--recipient %w", err)}
		}
		all = append(all, some...)
	}
	if len(all) > 0 {
		return all, nil
	}
	text, err := f.newPassphrase(ctx, first)
	if err != nil {
		return nil, err
	}
	to, err := age.NewScryptRecipient(text)
	if err != nil {
		return nil, err
	}
	to.SetWorkFactor(workFactor)
	return []age.Recipient{to}, nil
}

// parseRecipients reads a public key, or a file of such lines.
func parseRecipients(text string) (all []age.Recipient, err error) {
	lines := []byte(text)
	if !strings.HasPrefix(text, "age1") && !strings.HasPrefix(text, "ssh-") {
		if lines, err = readKeyFile(text); err != nil {
			return nil, err
		}
	}
	for line := range bytes.Lines(lines) {
		line := strings.TrimSpace(string(line))
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.HasPrefix(line, "ssh-") {
			to, err := agessh.ParseRecipient(line)
			if err != nil {
				return nil, err
			}
			all = append(all, to)
			continue
		}
		some, err := age.ParseRecipients(strings.NewReader(line))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: there is no key in it", text)
	}
	return all, nil
}

// parseIdentities reads a file of age's keys, or a private key of SSH, whose passphrase is asked
// for when it is needed.
func parseIdentities(ctx context.Context, path string, b []byte) ([]age.Identity, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		return age.ParseIdentities(bytes.NewReader(b))
	}
	id, err := agessh.ParseIdentity(b)
	var sealed *ssh.PassphraseMissingError
	if errors.As(err, &sealed) && sealed.PublicKey != nil {
		id, err = agessh.NewEncryptedSSHIdentity(sealed.PublicKey, b, func() ([]byte, error) {
			text, err := ask(ctx, "Passphrase of "+path)
			return []byte(text), err
		})
	}
	return []age.Identity{id}, err
}

func readKeyFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	if err == nil && len(b) > maxKeyFile {
		err = fmt.Errorf("%s: more than %s are no file of keys", path, size(maxKeyFile))
	}
	return b, err
}

// passphrase returns the passphrase from where the flags say, the environment, or the terminal.
func (f *vaultFlags) passphrase(ctx context.Context, what string) (string, error) {
	text, err := f.given(ctx)
	if text != "" || err != nil {
		return text, err
	}
	if text := os.Getenv(envPassphrase); text != "" {
		return text, nil
	}
	return ask(ctx, what)
}

// newPassphrase returns a passphrase that is new. The terminal is asked for it twice.
func (f *vaultFlags) newPassphrase(ctx context.Context, first bool) (string, error) {
	text, err := f.given(ctx)
	if text == "" && first {
		text = os.Getenv(envPassphrase)
	}
	if text != "" || err != nil {
		return text, err
	}
	text, err = ask(ctx, "New passphrase of the vault")
	if err != nil {
		return "", err
	}
	again, err := ask(ctx, "The same again")
	if err == nil && text != again {
		err = fmt.Errorf("%w: the two differ", errPassphrase)
	}
	return text, err
}

// given returns the passphrase from where the flags say, "" where they say nothing.
func (f *vaultFlags) given(ctx context.Context) (string, error) {
	switch {
	case f.passphraseFile != "" && f.passphraseCommand != "":
		return "", usagef("--passphrase-file and --passphrase-command exclude each other")
	case f.passphraseFile != "":
		b, err := readKeyFile(f.passphraseFile)
		if err != nil {
			return "", err
		}
		return oneLine(f.passphraseFile, b)
	case f.passphraseCommand != "":
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", f.passphraseCommand)
		cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr // it may ask somebody
		b, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("--passphrase-command: %w", err)
		}
		return oneLine("--passphrase-command", b)
	}
	return "", nil
}

// oneLine returns a passphrase without the end of its line.
func oneLine(from string, b []byte) (string, error) {
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" || strings.ContainsAny(text, "\n\x00") {
		return "", fmt.Errorf("%s: %w: want one line", from, errPassphrase)
	}
	return text, nil
}

// ask asks who sits at the terminal, which does not show the answer. When ctx ends the terminal is
// as it was; who reads from it is left to the end of the program.
func ask(ctx context.Context, what string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errNoTerminal
	}
	defer tty.Close()
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", errNoTerminal
	}
	fmt.Fprintf(tty, "%s: ", what)
	type answer struct {
		text []byte
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		answered <- answer{text, err}
	}()
	select {
	case a := <-answered:
		fmt.Fprintln(tty)
		if a.err != nil || len(a.text) == 0 {
			return "", fmt.Errorf("%w: none was given", errPassphrase)
		}
		return string(a.text), nil
	case <-ctx.Done():
		fmt.Fprintln(tty)
		return "", errors.Join(ctx.Err(), term.Restore(fd, before))
	}
}
