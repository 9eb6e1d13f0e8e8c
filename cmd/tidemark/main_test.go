package main

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
)

func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog)
	programs := map[string]func(){"tidemark": main}
	for name := range dropIns() {
		programs[name] = main
	}
	for name := range otherTools() {
		programs[name] = main
	}
	testscript.Main(m, programs)
}

func TestScripts(t *testing.T) {
	cmds := diskCommands()
	cmds["exits"], cmds["json"] = exits, jsonHas
	cmds["eracase"], cmds["claim"] = unpacks(eraCases), claim
	cmds["cowcase"] = unpacks("../../transfer/cowfiles/testdata/cases")
	cmds["storecase"] = unpacks("../../transfer/stores/testdata/cases")
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TIDEMARK_RUN_DIR", env.WorkDir+"/run")
			env.Setenv("TIDEMARK_STATE_DIR", env.WorkDir+"/state")
			env.Setenv("XDG_CACHE_HOME", env.WorkDir+"/cache")
			units, err := filepath.Abs("../../dist/systemd")
			if err != nil {
				return err
			}
			env.Setenv("UNITS", units)
			if err := ownS3(env); err != nil {
				return err
			}
			return ownBPFFS(env)
		},
		Cmds:                cmds,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}
