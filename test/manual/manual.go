// Package manual runs the commands of README and docs/manual: each page in a world of
// its own, from its first to its last line, as a reader would type them.
//
// It holds tests only. They need root, and the programs that scripts/setup installs;
// what is missing fails them. What the world has is said in the script that makes it,
// testdata/world. A line that must fail ends in "# exit N".
package manual
