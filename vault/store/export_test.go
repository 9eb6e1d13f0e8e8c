package store

// For tests from outside the package: servers, and what kills them.
var (
	SFTPServer = sftpServer
	S3Server   = s3Server
	KillSFTP   = killSFTP
	OpenSFTPAt = openSFTPAt
	OpenS3At   = openS3At
	Patient    = patient
	AwaitPort  = awaitPort

	LockedBucket = lockedBucket
	OpenLocked   = openLocked
	Versions     = versions
)
