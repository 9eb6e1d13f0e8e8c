package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tidemark/vault"
	"tidemark/vault/store"
)

// vaultFlags is how a vault is reached, and with which key.
type vaultFlags struct {
	endpoint          string
	noEncryption      bool
	passphraseFile    string
	passphraseCommand string
	identities        []string // files
}

const (
	envVault      = "TIDEMARK_VAULT"
	envPassphrase = "TIDEMARK_PASSPHRASE"
	envCache      = "XDG_CACHE_HOME"
)

// add adds the flags of a command that opens a vault.
func (f *vaultFlags) add(cmd *cobra.Command) {
	f.addPlace(cmd)
	f.addPassphrase(cmd)
	cmd.Flags().StringArrayVar(&f.identities, "identity", nil, "a `file` with keys of age or a private key of SSH that open the vault, instead of a passphrase")
}

// addNew adds those of a command that makes a vault for recipients.
func (f *vaultFlags) addNew(cmd *cobra.Command, recipients *[]string) {
	f.addPlace(cmd)
	f.addPassphrase(cmd)
	addRecipients(cmd, recipients)
}

func (f *vaultFlags) addPlace(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.endpoint, "endpoint", "", "the `URL` of a server that speaks S3, as https://s3.example.org:9000; by default Amazon's")
	cmd.Flags().BoolVar(&f.noEncryption, "no-encryption", false, "the vault is not encrypted; without this such a vault is refused")
}

func (f *vaultFlags) addPassphrase(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.passphraseFile, "passphrase-file", "", "a `file` with the passphrase; by default $TIDEMARK_PASSPHRASE counts, or else the terminal is asked")
	cmd.Flags().StringVar(&f.passphraseCommand, "passphrase-command", "", "a shell `command` that prints the passphrase")
}

func addRecipients(cmd *cobra.Command, to *[]string) {
	cmd.Flags().StringArrayVar(to, "recipient", nil, "a public `key` that opens the vault instead of a passphrase: age1..., ssh-ed25519 ..., ssh-rsa ..., or a file of such lines; may be given several times")
}

// vaultOf is the address of the vault where it is the only argument, or what the environment says.
func vaultOf(args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	if address := os.Getenv(envVault); address != "" {
		return address, nil
	}
	return "", usagef("VAULT is missing, and $%s is not set", envVault)
}

// openVault is an open vault with its store.
type openVault struct {
	*vault.Vault
	store store.Store
	calm  []byte // see calm
}

// calm has the garbage collector wait for 12 MiB, which a run that finds nothing new does not
// need, then for about 5 MiB at a time, and for 10 % of a large heap, of which most is buffers that
// stay. What it returns counts as in use while it is referred to, and takes no memory: nobody touches
// it. It comes before all else, as the runtime clears what was in use before.
func calm() []byte {
	const atFirst = 1500 // per cent of the 4 MiB that the runtime begins with
	debug.SetGCPercent(atFirst)
	runtime.AddCleanup(new([16]byte), func(percent int) { debug.SetGCPercent(percent) }, 10) // by the first collection
	return make([]byte, 48<<20)
}

func (v *openVault) Close() error { return errors.Join(v.Vault.Close(), v.store.Close()) }

// store opens the store of a vault.
func (f *vaultFlags) store(ctx context.Context, address string) (store.Store, error) {
	return store.Open(ctx, address, store.Options{Endpoint: f.endpoint})
}

// retrying returns a store that is asked again when a connection is lost, once it has answered.
// Who sits at a terminal is told: that lies on no filesystem that could be frozen.
func retrying(s store.Store) store.Store {
	return store.Retry(s, func(err error, d time.Duration) {
		if term.IsTerminal(int(os.Stderr.Fd())) {
			fmt.Fprintf(os.Stderr, "%v: trying again in %v\n", err, d)
		}
	})
}

// with opens the vault that the only argument names, or the environment without one, hands it to do, and
// closes it.
func (f *vaultFlags) with(ctx context.Context, args []string, do func(*openVault) error) error {
	address, err := vaultOf(args)
	if err != nil {
		return err
	}
	compute()
	v, err := f.open(ctx, address)
	if err != nil {
		return err
	}
	return errors.Join(do(v), v.Close())
}

// open opens the vault at an address with the key that the command line, the environment, or who
// sits at the terminal gives. One that is not encrypted is opened only when that was said: it may
// have been put in the place of another.
func (f *vaultFlags) open(ctx context.Context, address string) (*openVault, error) {
	still := calm()
	s, err := f.store(ctx, address)
	if err != nil {
		return nil, err
	}
	v, err := f.unlock(ctx, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &openVault{v, s, still}, nil
}

func (f *vaultFlags) unlock(ctx context.Context, s store.Store) (*vault.Vault, error) {
	encrypted, err := vault.Encrypted(ctx, s) // before anybody is asked for a passphrase
	if err != nil {
		return nil, err
	}
	o := vault.Options{Cache: cacheFolder(), Note: func(text string) { fmt.Fprintf(os.Stderr, "%v: %s\n", s, text) }}
	switch {
	case f.noEncryption:
		err = f.refuseKeys()
	case !encrypted:
		err = fmt.Errorf("%v: %w", s, errOpenVault)
	default:
		o.Identities, err = f.keys(ctx)
	}
	if err != nil {
		return nil, err
	}
	return vault.Open(ctx, retrying(s), o)
}

// errOpenVault says that a vault is not encrypted, which was not expected.
var errOpenVault = errors.New("the vault is not encrypted")

// cacheFolder is where what can be made again from a vault is kept, "" where that cannot be.
func cacheFolder() string {
	root := os.Getenv(envCache)
	if root == "" && os.Geteuid() == 0 {
		root = "/var/cache"
	}
	if root == "" {
		root, _ = os.UserCacheDir() // without a home there is none
	}
	if root == "" {
		return ""
	}
	folder := filepath.Join(root, "tidemark")
	if os.MkdirAll(folder, 0o700) != nil {
		return "" // then it is made for the time of the command
	}
	return folder
}

func (f *vaultFlags) refuseKeys() error {
	given := cmp.Or(f.passphraseFile, f.passphraseCommand)
	if given == "" && len(f.identities) > 0 {
		given = f.identities[0]
	}
	if given != "" {
		return usagef("--no-encryption does not go together with a key (%s)", given)
	}
	return nil
}
