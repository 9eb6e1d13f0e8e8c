package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	format "tidemark/format/vault"
	"tidemark/vault"
)

func newVaultKey() *cobra.Command {
	return command{
		use: "key", short: "Let others open a vault, or no more",
		long: `The master key of a vault is stored in key files, each encrypted to a passphrase, or to public keys of age or SSH. Any of them opens the vault. To add or remove one touches nothing else; to change a passphrase, add the new one and remove the old.

Who has opened a vault once may have kept its master key. Removing a key file keeps out who comes later, not that person: for that, "tidemark vault copy" to a new vault, and remove the old one.`,
		example: `tidemark vault key list /backup/vault
tidemark vault key add --recipient ~/.ssh/id_ed25519.pub /backup/vault
tidemark vault key remove /backup/vault 3f2c9a`,
	}.build(newVaultKeyAdd(), newVaultKeyList(), newVaultKeyRemove())
}

func newVaultKeyAdd() *cobra.Command {
	var f, fresh vaultFlags
	var recipients []string
	var asJSON bool
	cmd := command{
		use: "add [VAULT]", short: "Make another key that opens a vault",
		long: `Opens the vault with a key that it has, and stores the master key encrypted to another passphrase, or with --recipient to public keys of age or SSH.

` + vaultAddress + `.`,
		example: `tidemark vault key add /backup/vault
tidemark vault key add --recipient age1ph09ad2u4yl44z4svjnkv0v5p53hvr0z605s3a4ffl6zk6ppz4wqkxk09t /backup/vault
tidemark vault key add --passphrase-file old --new-passphrase-file new /backup/vault`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args, func(v *openVault) error {
				to, err := fresh.recipients(cmd.Context(), recipients, false)
				if err != nil {
					return err
				}
				id, err := v.AddKey(cmd.Context(), to...)
				if err != nil {
					return err
				}
				return printKey(cmd.OutOrStdout(), id, asJSON)
			})
		},
	}.build()
	f.add(cmd)
	addRecipients(cmd, &recipients)
	cmd.Flags().StringVar(&fresh.passphraseFile, "new-passphrase-file", "", "a `file` with the new passphrase; by default the terminal is asked")
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func printKey(w io.Writer, id format.ID, asJSON bool) error {
	if asJSON {
		return printJSON(w, keyInfo{ID: id.String()})
	}
	_, err := fmt.Fprintf(w, "key %v was added\n", id)
	return err
}

// keyInfo is one key file.
type keyInfo struct {
	ID    string   `json:"id"`
	Kinds []string `json:"kinds,omitempty"`
}

func newVaultKeyList() *cobra.Command {
	var f vaultFlags
	var asJSON bool
	cmd := command{
		use: "list [VAULT]", short: "List the keys that open a vault",
		long: `Lists the key files, and to what each is encrypted: scrypt is a passphrase, X25519 a key of age, ssh-ed25519 and ssh-rsa one of SSH. One that is damaged is listed as such, and opens nothing.

` + vaultAddress + `.`,
		example: `tidemark vault key list /backup/vault
tidemark vault key list --json --identity ~/.ssh/id_ed25519 sftp://backup@nas.example.org/srv/vault`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args, func(v *openVault) error {
				keys, err := v.Keys(cmd.Context())
				if err != nil {
					return err
				}
				return printKeys(cmd.OutOrStdout(), keys, asJSON)
			})
		},
	}.build()
	f.add(cmd)
	addJSON(cmd, &asJSON, "one object for each key")
	return cmd
}

func printKeys(w io.Writer, keys []vault.Key, asJSON bool) error {
	for _, k := range keys {
		var err error
		switch {
		case asJSON:
			err = printJSON(w, keyInfo{k.ID.String(), k.Kinds})
		case len(k.Kinds) == 0:
			_, err = fmt.Fprintf(w, "%v  damaged\n", k.ID)
		default:
			_, err = fmt.Fprintf(w, "%v  %s\n", k.ID, strings.Join(k.Kinds, ", "))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func newVaultKeyRemove() *cobra.Command {
	var f vaultFlags
	cmd := command{
		use: "remove VAULT KEY", short: "Remove a key that opens a vault",
		long: `Removes the key file KEY, which may be shortened to where it is still the only one. The last one that can be read is refused: nobody could read the vault any more.

` + vaultAddress + `.`,
		example: `tidemark vault key list /backup/vault
tidemark vault key remove /backup/vault 3f2c9a`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.ExactArgs(2),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args[:1], func(v *openVault) error {
				keys, err := v.Keys(cmd.Context())
				if err != nil {
					return err
				}
				id, err := keyOf(keys, args[1])
				if err != nil {
					return err
				}
				if err := v.RemoveKey(cmd.Context(), id); err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "key %v was removed\n", id)
				return err
			})
		},
	}.build()
	f.add(cmd)
	return cmd
}

// keyOf returns the key whose id begins with text.
func keyOf(keys []vault.Key, text string) (id format.ID, err error) {
	found := 0
	for _, k := range keys {
		if text != "" && strings.HasPrefix(k.ID.String(), text) {
			id, found = k.ID, found+1
		}
	}
	if found != 1 {
		return id, usagef("%d keys of the vault begin with %q: \"tidemark vault key list\" lists them", found, text)
	}
	return id, nil
}
