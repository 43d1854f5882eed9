#!/bin/sh
# SPDX-License-Identifier: MIT
# In dom0, with `xenpy serve block force=1` running: make a guest called $1 that has Python and xenpy;
# more words are more options of `xenvm-guest create`.
# They are dom0's own: its root file system is the guest's disk, for reading.
set -e
root=$(findmnt --noheadings --output SOURCE /)
# Where xenpy is now: the next `xenvm exec` makes another copy, which the guest does not see.
here=$(readlink -f /root/xenpy)
xenvm-guest create "$@" --memory 512
# What dom0 has not written yet, the guest does not see.
fsfreeze -f / && fsfreeze -u /
xenpy attach block "$(xl domid "$1")" vdev=xvda "target=$root" mode=r
xenvm-guest exec "$1" -- env "here=$here" sh -e <<'GUEST'
while [ ! -b /dev/xvda ]; do sleep 0.1; done
mount -t ext4 -o ro,noload /dev/xvda /mnt
for directory in dev proc sys tmp; do mount --bind /$directory /mnt/$directory; done
mkdir -p /mnt/dev/pts
mount -t devpts devpts /mnt/dev/pts
mount -t tmpfs run /mnt/run
# To grant pages and to map others', and event channels.
chroot /mnt modprobe -a xen-gntalloc xen-gntdev xen-evtchn
for program in python3 xenpy; do
    cat > /bin/$program <<WRAPPER
#!/bin/sh
export PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin
exec chroot /mnt sh -c 'cd $here && exec "\$0" "\$@"' $program "\$@"
WRAPPER
    chmod +x /bin/$program
done
GUEST
