// Package statedir watches folders in which other programs keep their state. It is the only package that knows
// fsnotify.
package statedir
