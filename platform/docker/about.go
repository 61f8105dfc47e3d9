package docker

import (
	"context"
	"errors"
	"fmt"
)

// About is what an engine says of itself.
type About struct {
	Name    string // of its platform, such as Docker Engine - Community
	Version string
	API     string // the version of the interface that we and it have agreed on
}

// About asks the engine what it is, on a connection of its own.
func (e *Engine) About(ctx context.Context) (About, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cli, err := e.dial(ctx)
	if err != nil {
		return About{}, e.hint(err)
	}
	v, err := cli.ServerVersion(ctx)
	about := About{Name: v.Platform.Name, Version: v.Version, API: cli.ClientVersion()}
	if err != nil {
		err = fmt.Errorf("ask the engine at %s for its version: %w", e.host, err)
	}
	return about, errors.Join(err, cli.Close())
}
