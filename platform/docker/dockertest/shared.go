//go:build linux

package dockertest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
)

var common struct {
	sync.Mutex
	engine *Engine
	err    error
}

// Main runs a package's tests and then closes the engine they shared.
//
//	func TestMain(m *testing.M) { os.Exit(dockertest.Main(m)) }
func Main(m interface{ Run() int }) int {
	code := m.Run()
	if err := CloseShared(); err != nil {
		fmt.Fprintf(os.Stderr, "dockertest: %v\n", err)
		code = max(code, 1)
	}
	return code
}

// CloseShared closes the shared engine, for a TestMain that has other things to
// do as well.
func CloseShared() error {
	common.Lock()
	defer common.Unlock()
	e := common.engine
	common.engine, common.err = nil, nil
	if e == nil {
		return nil
	}
	return e.Close()
}

// Shared is the engine that all tests of the package share, started by the
// first that asks. The package needs a TestMain with Main. A test that ends the
// engine or counts all of its containers wants one of its own, see Start.
func Shared(tb testing.TB) *Engine {
	tb.Helper()
	needRoot(tb)
	common.Lock()
	defer common.Unlock()
	if common.engine == nil && common.err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		common.engine, common.err = Launch(ctx, "", os.Stderr, Reused())
	}
	if common.err != nil {
		tb.Fatalf("dockertest: %v", common.err)
	}
	e := common.engine
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("dockertest: the shared engine's log ends:\n%s", e.Log())
		}
	})
	return e
}
