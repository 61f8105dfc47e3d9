package docker

import (
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
)

func TestVolumeItem(t *testing.T) {
	for _, tt := range []struct {
		name    string
		v       volume.Volume
		id      string
		foreign bool
	}{
		{"local", volume.Volume{Name: "v", CreatedAt: "2026-01-02T03:04:05Z", Scope: "local"}, "v@2026-01-02T03:04:05Z", false},
		{"another zone", volume.Volume{Name: "v", CreatedAt: "2026-01-02T04:04:05+01:00", Scope: "local"}, "v@2026-01-02T03:04:05Z", false},
		{"finer", volume.Volume{Name: "v", CreatedAt: "2026-01-02T03:04:05.678Z"}, "v@2026-01-02T03:04:05Z", false},
		{"an odd name", volume.Volume{Name: "a@b", CreatedAt: "2026-01-02T03:04:05Z"}, "a@b@2026-01-02T03:04:05Z", false},
		{"a cluster's", volume.Volume{Name: "v", CreatedAt: "2026-01-02T03:04:05Z", Scope: "global"}, "v@2026-01-02T03:04:05Z", true},
		{"of unknown age", volume.Volume{Name: "v", Scope: "local"}, "v@0001-01-01T00:00:00Z", true},
	} {
		it := volumeItem(&tt.v)
		if it.id != tt.id || it.foreign != tt.foreign || volumeName(it.id) != tt.v.Name {
			t.Errorf("%s: %+v, want %s, foreign: %t", tt.name, it, tt.id, tt.foreign)
		}
	}
	if got := volumeName("v"); got != "v" {
		t.Errorf("name of an ID without a time: %q", got)
	}
}

func TestNetworkItem(t *testing.T) {
	for _, tt := range []struct {
		n       network.Inspect
		foreign bool
	}{
		{network.Inspect{Name: "n", ID: id1, Scope: "local"}, false},
		{network.Inspect{Name: "bridge", ID: id1, Scope: "local"}, true},
		{network.Inspect{Name: "host", ID: id1, Scope: "local"}, true},
		{network.Inspect{Name: "none", ID: id1, Scope: "local"}, true},
		{network.Inspect{Name: "n", ID: id1, Scope: "swarm"}, true},
		{network.Inspect{Name: "n", ID: id1, Ingress: true}, true},
	} {
		if it := networkItem(tt.n); it.foreign != tt.foreign || it.id != id1 || it.slot != id1 {
			t.Errorf("%+v: %+v", tt.n, it)
		}
	}
}

// TestIs: a volume that was made again with the same name is another, unless that cannot be.
func TestIs(t *testing.T) {
	at := time.Unix(1000, 0)
	first := item{slot: "v", id: "v@1", name: "v", created: at, labels: map[string]string{"watcher.ttl": "1h"}}
	moved := first
	moved.created = at.Add(time.Minute)
	relabelled := first
	relabelled.labels = map[string]string{"watcher.ttl": "2h"}
	for _, tt := range []struct {
		name        string
		before, now []string
		it          item
		want        bool
	}{
		{"nothing has changed", nil, nil, first, true},
		{"another user", []string{"a"}, []string{"b"}, first, true},
		{"made later", nil, nil, moved, false},
		{"made later, with another user", []string{"a"}, []string{"b"}, moved, false},
		{"made later, and the same container refers to it", []string{"a", "b"}, []string{"b", "c"}, moved, true},
		{"other labels", []string{"a"}, []string{"a"}, relabelled, false},
	} {
		b := &belonging{item: first, latest: at, users: tt.before}
		if got := b.is(tt.it, tt.now); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
	n := item{slot: id1, id: id1, created: at}
	if !(&belonging{item: n, latest: at}).is(item{slot: id1, id: id1, created: at.Add(time.Hour)}, nil) {
		t.Error("a network is another although its ID is the same")
	}
}

func TestNetworksOf(t *testing.T) {
	got := networksOf(id1, map[string]*network.EndpointSettings{"a": {NetworkID: id2}, "b": {}, "c": nil})
	if want := []string{id1, "a", "b", "c", id2}; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("%q, want %q", got, want)
	}
}
