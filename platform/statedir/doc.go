// Package statedir watches folders in which other programs keep their state, and removes what they leave there. It is the
// only package that knows fsnotify.
//
// What the dead owners of sandboxes left in the file system is found and removed by [Leftovers]. Who removes files as root
// among files of others is easily made to remove more; these invariants stand against that:
//
//	T1  Nothing is removed but what the last element of a glob matches that a rule names now. The folder it is in stays,
//	    and so does every folder that another glob leads through. A path never comes from a record, only from a rule.
//	    [Remove] and its like take a path: that a rule names it is for their caller to know.
//	T2  An ID names one incarnation: path, device, inode and time of birth. What is removed is compared with it on an open
//	    descriptor, which neither a rename nor the reuse of an inode can make mean something else.
//	T3  No link is followed, at the start or on the way: every element of a path is opened by itself, in the folder that
//	    was opened before it, with O_NOFOLLOW (openat(2)). A link is removed as a link.
//	T4  No mount is entered and none is removed, nor a device other than the leftover's. Every folder is asked for both
//	    after it was opened.
//	T5  A leftover that may be in use is not removed, and what cannot be looked at may be in use.
//	T6  The leftover itself goes last, so its ID stays valid until all is gone, and a removal that was interrupted can be
//	    repeated.
//	T7  A folder that cannot be read is not an empty one: the list fails.
//	T8  A removal needs a bounded number of descriptors and a bounded memory, however wide or deep the tree is.
//	T9  [RemoveOwned] empties no folder of another user. So what a user put there costs nobody more than he could have removed
//	    himself: a name of a file that is in his own folder, or an empty folder.
//
// All this holds while others rename, swap, link and mount what is being removed. What it cannot do: unlinkat(2) takes a
// name, not a descriptor. Between the look and the removal of a single entry its name may be given to another one, which
// then goes instead; only who may write in the folder can do that, and only to a file, or a folder that is empty.
//
// In a folder such as /tmp anybody may give anything a name that a rule matches. That is no danger to others: it makes the
// root of a tree that its user could as well have removed. What it can cost are folders of other users which its user may
// move, and so write in, but not empty; and of a file with several names it is one name.
//
// What Linux does, and since when:
//
//   - statx(2) came with 4.11, STATX_MNT_ID with 5.8; before that, the mount is read from /proc/self/fdinfo (3.15).
//   - The time of birth is known on ext4 (unless its inodes have 128 bytes), XFS with checksums, Btrfs, overlay on one of
//     them, and tmpfs (5.18). It cannot be set. Elsewhere the latest of change and modification stands for it, and for the
//     incarnation: such a leftover becomes another with every change of it.
//   - unlink(2) of a folder is EISDIR, rmdir(2) of a mount point EBUSY even if it is not empty. So both can be tried
//     without a look at what is there. A mount point of another mount namespace alone is no obstacle, and is unmounted.
//   - Opening with O_PATH has no effect on what is opened, mounts no automount, and needs no right to read.
//   - connect(2) to a UNIX socket of another type is EPROTOTYPE if the socket is bound and ECONNREFUSED if nobody has it
//     any more. The process that has it does not notice.
//   - F_OFD_GETLK (3.15) tells of locks of fcntl(2), also through a descriptor that could not take them. A lock of flock(2)
//     can only be found by trying to take it. /proc/locks leaves out those whose taker has exited, or is in another PID
//     namespace.
//   - A FUSE file system keeps out even root, with EACCES, unless it was mounted with allow_other (fuse(4)).
package statedir
