package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"

	"watcher/watch"
)

// Volumes are the named volumes of the engine. The anonymous ones of a container go with it.
func (e *Engine) Volumes() *Belongings {
	return &Belongings{engine: e, kind: watch.Volume, all: allVolumes, one: oneVolume, remove: removeVolume, slot: volumeName}
}

// volumeID names one volume for good, as name@2026-01-02T03:04:05Z: a name alone is free again when its volume is gone.
//
// The time is the engine's, and has whole seconds. A volume that was removed, and made again with the same name and
// labels within one second, passes for the same. Docker before version 23 takes for it when something was last made,
// renamed or removed in the topmost folder: there the ID is of the time at which we first saw the volume, and the volume
// counts as the same while any container that referred to it still does (see [belonging.is]). Afterwards, or when we
// have been restarted, it may be another to us, with the same labels: what was known of the first is found out again.
func volumeID(name string, created time.Time) string {
	return name + "@" + created.Format(time.RFC3339)
}

// volumeName is the name in an ID.
func volumeName(id string) string {
	if at := strings.LastIndex(id, "@"); at >= 0 {
		return id[:at]
	}
	return id
}

func volumeItem(v *volume.Volume) item {
	created, err := time.Parse(time.RFC3339, v.CreatedAt)
	created = created.UTC().Truncate(time.Second)
	return item{
		slot: v.Name, id: volumeID(v.Name, created), name: v.Name, created: created, labels: v.Labels,
		// Without a time it is but a name. And what other machines share they may use, which nobody here can see.
		foreign: err != nil || v.Scope != "" && v.Scope != "local" || v.ClusterVolume != nil,
	}
}

func allVolumes(ctx context.Context, cli *client.Client) ([]item, error) {
	list, err := cli.VolumeList(ctx, volume.ListOptions{})
	if err != nil {
		return nil, err
	}
	if len(list.Warnings) > 0 {
		// As when the plugin of some does not answer: it is not whole (D2).
		return nil, errors.New(strings.Join(list.Warnings, "; "))
	}
	var items []item
	for _, v := range list.Volumes {
		items = append(items, volumeItem(v))
	}
	return items, nil
}

func oneVolume(ctx context.Context, cli *client.Client, name string) (item, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	v, err := cli.VolumeInspect(ctx, name)
	switch {
	case err != nil:
		return item{}, err
	case v.Name != name:
		return item{}, fmt.Errorf("inspect volume %s: the engine's answer is about %q", name, v.Name)
	}
	return volumeItem(&v), nil
}

func removeVolume(ctx context.Context, cli *client.Client, name string) error {
	return cli.VolumeRemove(ctx, name, false)
}
