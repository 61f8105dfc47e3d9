//go:build linux

package dockertest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/docker/docker/api/types/image"
)

// ImageName is what every container of Run is made from.
const ImageName = "watchertest:latest"

//go:embed sandbox/main.go
var sandboxSource []byte

// Image imports the image, once per engine, and returns its name.
func (e *Engine) Image(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	name, err := e.Import(ctx)
	if err != nil {
		tb.Fatalf("dockertest: %v", err)
	}
	return name
}

// Import is Image for those without a test.
func (e *Engine) Import(ctx context.Context) (string, error) {
	e.image.Lock()
	defer e.image.Unlock()
	if e.image.done {
		return ImageName, nil
	}
	bin, err := buildSandbox(ctx)
	if err != nil {
		return "", err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "sandbox", Mode: 0o755, Size: int64(len(bin))}),
		write(w, bin),
		w.Close(),
	); err != nil {
		return "", fmt.Errorf("pack the image: %w", err)
	}
	answer, err := e.client.ImageImport(ctx, image.ImportSource{Source: &layer, SourceName: "-"}, ImageName,
		image.ImportOptions{Changes: []string{`ENTRYPOINT ["/sandbox"]`}})
	if err != nil {
		return "", fmt.Errorf("import the image: %w", err)
	}
	defer answer.Close()
	if _, err := io.Copy(io.Discard, answer); err != nil {
		return "", fmt.Errorf("import the image: %w", err)
	}
	if _, err := e.client.ImageInspect(ctx, ImageName); err != nil { // the stream may end in an error
		return "", fmt.Errorf("import the image: %w", err)
	}
	e.image.done = true
	return ImageName, nil
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

// buildSandbox compiles the program, or finds it where an earlier run has put
// it: a link takes half a second, and a cold standard library ten.
func buildSandbox(ctx context.Context) ([]byte, error) {
	key := sha256.Sum256(append([]byte(runtime.Version()+" "+runtime.GOARCH+"\n"), sandboxSource...))
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "watchertest")
	kept := filepath.Join(cache, fmt.Sprintf("sandbox-%x", key[:8]))
	if bin, err := os.ReadFile(kept); err == nil {
		return bin, nil
	}

	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, fmt.Errorf("build the sandbox: %w", err)
	}
	tmp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return nil, fmt.Errorf("build the sandbox: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "main.go"), sandboxSource, 0o600); err != nil {
		return nil, fmt.Errorf("build the sandbox: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", "sandbox", "main.go")
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GO111MODULE=off", "PWD="+tmp)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the sandbox: %w\n%s", err, out)
	}
	bin, err := os.ReadFile(filepath.Join(tmp, "sandbox"))
	if err != nil {
		return nil, fmt.Errorf("build the sandbox: %w", err)
	}
	// Renamed into place, so that nobody reads half a program. If it cannot be
	// kept, the next run builds it again.
	_ = os.Rename(filepath.Join(tmp, "sandbox"), kept)
	return bin, nil
}
