#!/bin/bash
# Builds what the virtual machines need, under $USB_REMOTE_LAB: vmlinux, root.sqfs, initrd.cpio.
# Idempotent: each stage leaves a stamp in stamps/ that names what it was made from, and is skipped
# while that still holds. Needs root and the packages named in tools(); touches nothing outside.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
lab=${USB_REMOTE_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/usb-remote-lab}
python=${PYTHON:-python3}
suite=bookworm guest_python=3.11
packages=python3,python3-venv,udev,kmod,iproute2,usbip,procps,hwdata,usbutils,iputils-ping
packages+=,libusb-1.0-0,sudo,util-linux,nftables,dmsetup,e2fsprogs,systemd
libraries=(typer rich pydantic zeroconf pyudev ruamel.yaml usbip)
old_release=usb-remote==2.3.2
# Only the module trees that matter: 300 MB otherwise.
modules=(
  drivers/usb drivers/hid drivers/input drivers/virtio drivers/scsi drivers/md drivers/dax
  drivers/block/virtio_blk.ko drivers/block/loop.ko
  drivers/net/virtio_net.ko drivers/net/net_failover.ko drivers/net/dummy.ko drivers/net/veth.ko
  drivers/net/usb drivers/net/mii.ko drivers/net/phy
  drivers/char/virtio_console.ko drivers/char/hw_random
  net/core/failover.ko net/netfilter net/ipv4/netfilter net/ipv6/netfilter net/sched
  fs/overlayfs fs/squashfs fs/ext4 fs/jbd2 fs/mbcache.ko fs/fat fs/nls fs/configfs
  lib block crypto arch/x86/crypto
)
# Units that cost time under emulation and are about nothing that is tested.
unwanted=(
  getty.target getty@tty1.service serial-getty@ttyS0.service console-getty.service
  systemd-logind.service systemd-user-sessions.service systemd-update-utmp.service
  systemd-update-utmp-runlevel.service systemd-timesyncd.service systemd-networkd.service
  systemd-random-seed.service systemd-pstore.service systemd-firstboot.service
  systemd-sysusers.service systemd-hwdb-update.service systemd-journal-catalog-update.service
  systemd-update-done.service ldconfig.service proc-sys-fs-binfmt_misc.automount
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer
  e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer nftables.service
  dev-hugepages.mount dev-mqueue.mount sys-kernel-tracing.mount
)

fail() { echo "lab: $*" >&2; exit 1; }

tools() {
  local pair missing=()
  for pair in qemu-system-x86_64=qemu-system-x86 busybox=busybox-static cpio=cpio \
              debootstrap=debootstrap mksquashfs=squashfs-tools; do
    command -v "${pair%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  ((${#missing[@]} == 0)) || fail "missing; apt-get install ${missing[*]}"
  ((EUID == 0)) || fail "debootstrap needs root"
}

# stage NAME INPUT: run build_NAME unless its stamp says that it was made from INPUT. Each stage
# uses those before it, so after one that ran all others do.
stage() {
  [[ -z $stale && -e stamps/$1 && $(<"stamps/$1") == "$2" ]] && return
  stale=yes
  echo "lab: building $1"
  rm -f "stamps/$1"
  "build_$1"
  echo "$2" >"stamps/$1"
}

mirror() {
  apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" "Component: main" | head -n 1
}

newest_kernel() {
  apt-cache pkgnames linux-image-6.1.0- | grep -E '^linux-image-6\.1\.0-[0-9]+-amd64$' |
    sort -V | tail -n 1 | sed 's/^linux-image-//'
}

# The kernel stays what it was until somebody removes its stamp: a build needs no network then.
build_kernel() {
  apt-get update -qq
  local release; release=$(newest_kernel)
  [[ $release ]] || fail "apt offers no linux-image-6.1.0-*-amd64 (Debian 12 is needed)"
  rm -rf kernel download; mkdir -p kernel download; chmod a+rwx download
  (cd download && apt-get download -q "linux-image-$release")
  dpkg -x download/*.deb kernel; rm -rf download
  # An ELF vmlinux boots by PVH, without XZ under emulation: 5 s less than the bzImage.
  "$python" - "kernel/boot/vmlinuz-$release" vmlinux <<'END'
import lzma, sys
image = open(sys.argv[1], "rb").read()
start = image.index(b"\xfd7zXZ\x00")
kernel = lzma.LZMADecompressor().decompress(image[start:])
assert kernel[:4] == b"\x7fELF"
open(sys.argv[2], "wb").write(kernel)
END
  echo "$release" >kernel.release
}

build_root() {
  umount -q root/proc root/sys || true   # of a debootstrap that was killed
  rm -rf --one-file-system root
  debootstrap --variant=minbase --include="$packages" "$suite" root "$(mirror)" >debootstrap.log ||
    fail "debootstrap failed, see $lab/debootstrap.log"
  rm -rf root/var/cache/apt root/var/lib/apt/lists/* root/usr/share/{doc,man,locale}
  rm -rf root/usr/lib/python3*/test
  chroot root useradd --create-home --shell /bin/bash alice
}

build_modules() {
  local from=kernel/lib/modules/$release to=root/lib/modules/$release
  rm -rf root/lib/modules; mkdir -p "$to"
  tar -c -C "$from" "${modules[@]/#/kernel/}" --exclude=kernel/drivers/usb/atm \
    modules.order modules.builtin modules.builtin.modinfo | tar -x -C "$to"
  chroot root depmod "$release"
}

# install TARGET REQUIREMENT...: into a folder of the guest, compiled by the guest's own Python.
install() {
  local target=root$1 flags=(); shift
  "$python" -m pip --version >/dev/null 2>&1 || python=python3
  "$python" -m pip --version >/dev/null 2>&1 || fail "no pip; apt-get install python3-pip"
  [[ $("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') == "$guest_python" ]] ||
    flags=(--python-version "$guest_python" --only-binary ":all:"
           --platform manylinux_2_36_x86_64 --platform manylinux_2_28_x86_64
           --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
  rm -rf "$target"
  "$python" -m pip install -q --no-compile --target "$target" "${flags[@]}" "$@"
  chroot root python3 -m compileall -q --invalidation-mode unchecked-hash "${target#root}" >/dev/null
}

build_libraries() {
  local flags=()
  [[ ! -e $repo/constraints.txt ]] || flags=(-c "$repo/constraints.txt")
  install /opt/py "${libraries[@]}" "${flags[@]}"
}

# Where tests install the wheel: an environment of its own that has the libraries already.
build_environment() {
  rm -rf root/opt/venv
  chroot root python3 -m venv /opt/venv
  echo /opt/py >"root/opt/venv/lib/python$guest_python/site-packages/lab.pth"
}

build_old_release() { install /opt/usb-remote-2x "$old_release"; }

build_image() {
  command install -m755 "$here/image/labinit" root/sbin/labinit
  command install -m755 "$here/image/agent.py" root/sbin/labagent
  command install -m755 "$here/image/forkserver.py" root/sbin/labforkserver
  command install -m755 "$here/image/labnetwork" root/sbin/labnetwork
  command install -D -m755 -t root/usr/local/bin "$here"/image/bin/*
  command install -D -m644 -t root/etc/systemd/system "$here"/image/systemd/*
  chroot root systemctl enable -q lab-network.service lab-agent.service
  chroot root systemctl mask -q "${unwanted[@]}"
  chroot root systemctl set-default -q multi-user.target
  rm -f root.sqfs.new
  mksquashfs root root.sqfs.new -comp lz4 -noappend -quiet -no-progress
  mv root.sqfs.new root.sqfs
}

build_initrd() {
  local module
  rm -rf initrd; mkdir -p initrd/{bin,proc,sys,dev,lower,over,newroot,lib/modules}
  cp "$(command -v busybox)" initrd/bin/
  for tool in sh mount umount insmod mkdir sleep switch_root; do
    ln -s busybox "initrd/bin/$tool"
  done
  command install -m755 "$here/image/init" initrd/init
  for module in virtio_pci virtio_blk squashfs overlay virtio_console ext4; do
    chroot root modprobe -S "$release" --show-depends "$module"
  done | awk '/^insmod/ && !seen[$2]++ {print $2}' | while read -r module; do
    cp "root$module" initrd/lib/modules/; basename "$module"
  done >initrd/modules
  (cd initrd && find . | cpio -o -H newc --quiet) >initrd.cpio
}

digest() { cat "$@" /dev/null | sha256sum | cut -c1-16; }

main() {
  tools
  umask 022
  mkdir -p "$lab/stamps"; cd "$lab"
  exec 9>lock; flock 9   # one build at a time
  local stale='' constraints; constraints=$(digest $(ls "$repo/constraints.txt" 2>/dev/null))
  stage kernel 6.1.0
  release=$(<kernel.release)
  stage root "$suite $packages"
  stage modules "$release ${modules[*]}"
  stage libraries "${libraries[*]} $constraints"
  stage environment "$guest_python"
  stage old_release "$old_release"
  local files=("$here"/image/{labinit,labnetwork,agent.py,forkserver.py} "$here"/image/{bin,systemd}/*)
  stage image "${unwanted[*]} $(digest "${files[@]}")"
  stage initrd "$(digest "$here/image/init")"
}

main "$@"
