package docker

import (
	"context"
	"fmt"
	"slices"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"watcher/watch"
)

// Networks are the networks of the engine, without those that it has by itself.
func (e *Engine) Networks() *Belongings {
	return &Belongings{
		engine: e, kind: watch.Network, all: allNetworks, one: oneNetwork, remove: removeNetwork,
		slot: func(id string) string { return id },
	}
}

// predefined are the networks that an engine has by itself.
var predefined = []string{network.NetworkBridge, network.NetworkHost, network.NetworkNone}

func networkItem(n network.Inspect) item {
	return item{
		slot: n.ID, id: n.ID, name: n.Name, created: n.Created, labels: n.Labels,
		// What other machines share they may use, which nobody here can see.
		foreign: slices.Contains(predefined, n.Name) || n.Ingress || n.Scope != "" && n.Scope != "local",
	}
}

func allNetworks(ctx context.Context, cli *client.Client) ([]item, error) {
	list, err := cli.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return nil, err
	}
	var items []item
	for _, n := range list {
		items = append(items, networkItem(n))
	}
	return items, nil
}

func oneNetwork(ctx context.Context, cli *client.Client, id string) (item, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := cli.NetworkInspect(ctx, id, network.InspectOptions{})
	switch {
	case err != nil:
		return item{}, err
	case n.ID != id: // the engine also takes a name, or the first digits of an ID
		return item{}, fmt.Errorf("inspect network %s: the engine's answer is about %q", id, n.ID)
	}
	return networkItem(n), nil
}

func removeNetwork(ctx context.Context, cli *client.Client, id string) error {
	return cli.NetworkRemove(ctx, id)
}

// networksOf are the networks that a container refers to, by name or ID. One that never ran has none of their IDs yet.
func networksOf(mode string, endpoints map[string]*network.EndpointSettings) []string {
	names := []string{mode}
	for name, endpoint := range endpoints {
		names = append(names, name)
		if endpoint != nil && endpoint.NetworkID != "" {
			names = append(names, endpoint.NetworkID)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
