package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	format "tidemark/format/vault"
	"tidemark/vault"
)

// vaultAddress is what help says of the argument VAULT.
const vaultAddress = `VAULT is the path of a folder, sftp://[user@]host[:port]/path (by the ssh of the system, with its configuration and agent), or s3://bucket/prefix (keys from the environment or the profile that Amazon's tools use; another server than Amazon's with --endpoint)`

func newVault() *cobra.Command {
	return command{
		use: "vault", short: "Keep points of disks in a folder, on an SFTP server or in S3",
		long: `A vault keeps points of disks: each one is all of a disk at one instant, and costs what changed since the one before. Any of them can be restored, compared or forgotten without any other. Content is compressed, stored once, and encrypted: who has the storage and not the key learns sizes and times, and can neither read nor alter anything unnoticed.

` + vaultAddress + `. Where a command needs nothing else it may be left out, and $TIDEMARK_VAULT counts.

"tidemark backup" makes points, "tidemark points" lists them, "tidemark restore" brings one back.`,
		example: `tidemark vault init /backup/vault
tidemark backup /dev/vdb1 /backup/vault
tidemark points /backup/vault
tidemark restore /backup/vault latest vdb1.img`,
	}.build(newVaultInit(), newVaultInfo(), newVaultKey(), newVaultVerify(), newPrune(), newVaultRepair(), newVaultCopy(), newVaultUnlock())
}

func newVaultInit() *cobra.Command {
	var f vaultFlags
	var recipients []string
	var lock vault.Span
	var asJSON bool
	cmd := command{
		use: "init [VAULT]", short: "Make a vault",
		long: `Makes a vault in a folder that is made if need be, but not what that lies in, on an SFTP server, or in a bucket of S3 that exists.

It is encrypted. Its master key is made now, and stored encrypted: to a passphrase, or with --recipient to public keys of age or SSH, so that machines which back up have no secret that a person must remember. "tidemark vault key add" adds others later. Without any of these keys nobody can read the vault, whoever asks: keep a copy of one elsewhere.

With --no-encryption whoever reads the storage reads the disks. All checksums are kept, but who can write to the storage can alter anything. Each later command must be given --no-encryption as well, so that no other vault can be put in the place of one that is encrypted.

With --lock nobody can remove a point, or anything that it needs, before that time has passed since it was made: no thief of keys, and not you either. It is object lock of S3, in its mode "compliance", which the provider enforces against the owner of the bucket, too; the only way out is to close the account, so begin with few days. The bucket must have been made with object lock, and without a default retention. A vault has one lock, from the beginning.

` + vaultAddress + `.`,
		example: `tidemark vault init /backup/vault
# for keys of two people, and none that a machine knows
tidemark vault init --recipient age1ph09ad2u4yl44z4svjnkv0v5p53hvr0z605s3a4ffl6zk6ppz4wqkxk09t --recipient ~/.ssh/id_ed25519.pub sftp://backup@nas.example.org/srv/vault
tidemark vault init --passphrase-file /etc/tidemark/passphrase --endpoint https://s3.example.org s3://bucket/vault
# points that nobody can remove for 30 days
aws s3api create-bucket --bucket vault-locked --object-lock-enabled-for-bucket
tidemark vault init --lock 30d s3://vault-locked/web1`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			address, err := vaultOf(args)
			if err != nil {
				return err
			}
			return f.init(cmd, address, lock.Length(time.Now().UTC()), recipients, asJSON)
		},
	}.build()
	f.addNew(cmd, &recipients)
	cmd.Flags().Var(&lock, "lock", "have nobody remove a point for that `time` since it was made: 30d, 6w or 1y; S3 alone can do that")
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func (f *vaultFlags) init(cmd *cobra.Command, address string, lock time.Duration, recipients []string, asJSON bool) error {
	ctx := cmd.Context()
	s, err := f.store(ctx, address)
	if err != nil {
		return err
	}
	defer s.Close()
	var to []age.Recipient
	if !f.noEncryption {
		if to, err = f.recipients(ctx, recipients, true); err != nil {
			return err
		}
	}
	if err := vault.InitLocked(ctx, s, lock, to...); err != nil {
		return err
	}
	return printVault(cmd.OutOrStdout(), vaultInfo{Vault: s.String(), Encrypted: !f.noEncryption, Lock: int64(lock.Seconds())}, "made", asJSON)
}

// vaultInfo is what "vault info" tells.
type vaultInfo struct {
	Vault     string `json:"vault"`
	ID        string `json:"id,omitempty"`
	Encrypted bool   `json:"encrypted"`
	Lock      int64  `json:"lock_seconds,omitempty"`
	Disks     int    `json:"disks"`
	Points    int    `json:"points"`
	Keys      int    `json:"keys"`
	Packs     int    `json:"packs"`
	Stored    int64  `json:"bytes_stored"` // by packs
	Shown     int64  `json:"bytes_shown"`  // sizes of all points
}

func newVaultInfo() *cobra.Command {
	var f vaultFlags
	var asJSON bool
	cmd := command{
		use: "info [VAULT]", short: "Tell what a vault has, and how much it stores",
		long: `Prints the id of the vault, whether it is encrypted, for how long nobody can remove its points, how many disks, points and keys it has, and how much its packs take.

` + vaultAddress + `.`,
		example: `tidemark vault info /backup/vault
tidemark vault info --json --passphrase-file /etc/tidemark/passphrase sftp://backup@nas.example.org/srv/vault`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args, func(v *openVault) error {
				info, err := v.info(cmd.Context())
				if err != nil {
					return err
				}
				return printVault(cmd.OutOrStdout(), info, "", asJSON)
			})
		},
	}.build()
	f.add(cmd)
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func (v *openVault) info(ctx context.Context) (vaultInfo, error) {
	info := vaultInfo{Vault: v.store.String(), ID: v.ID().String(), Encrypted: v.Encrypted(), Lock: int64(v.Lock().Seconds())}
	disks, err := v.Disks(ctx)
	if err != nil {
		return info, err
	}
	points, err := v.Points(ctx, format.ID{})
	if err != nil {
		return info, err
	}
	for _, p := range points {
		info.Shown += p.Size
	}
	keys, err := v.Keys(ctx)
	if err != nil {
		return info, err
	}
	info.Disks, info.Points, info.Keys = len(disks), len(points), len(keys)
	info.Packs, info.Stored, err = v.Stored(ctx)
	return info, err
}

func printVault(w io.Writer, info vaultInfo, did string, asJSON bool) error {
	if asJSON {
		return printJSON(w, info)
	}
	how := "encrypted"
	if !info.Encrypted {
		how = "NOT encrypted: who can read it reads the disks"
	}
	if info.Lock > 0 {
		how += ", each point locked for " + ago(time.Duration(info.Lock)*time.Second)
	}
	if did != "" {
		_, err := fmt.Fprintf(w, "%s: %s, %s\n", info.Vault, did, how)
		return err
	}
	_, err := fmt.Fprintf(w, "%s: %s (id %s)\n%d points of %d disks, %s in all; %s stored in %d packs; %d keys\n",
		info.Vault, how, info.ID, info.Points, info.Disks, size(info.Shown), size(info.Stored), info.Packs, info.Keys)
	return err
}
