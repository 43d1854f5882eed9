# SPDX-License-Identifier: MIT
import os, sys
from xenpy.vm import build, host, image, machine as m, warm
from xenpy.vm.cache import Cache
from xenpy.vm.checkout import Checkout
from xenpy.vm.errors import HARNESS, VmError
from xenpy.vm.machine import Vm, make_overlay, scratch_directory
from xenpy.vm.qemu import Machine
from xenpy.vm.releases import release
from xenpy.vm.session import Session
from xenpy.vm.ssh import Keys, Link

def main():
    args = sys.argv[1:]
    rel = "trixie"
    assert args.pop(0) == "exec"
    while args[0] != "--":
        a = args.pop(0)
        if a == "--release": rel = args.pop(0)
    cmd = args[1:]
    try:
        cache = Cache()
        img = image.ensure(cache, release(rel))
        mach = Machine()
        w = warm.ensure(cache, img, mach)
        co = Checkout.scan()
        built = build.ensure(cache, img, co)
        with scratch_directory(cache) as d:
            make_overlay(w.disk, "qcow2", d / "disk.qcow2")
            with Vm(img, mach, d) as vm:
                vm.start(d / "disk.qcow2", w.state)
                with Session(Link(Keys.ensure(cache), vm.port, d), vm.check, vm) as s:
                    s.push(co, built)
                    return s.run(cmd)
    except VmError as e:
        print(e.render(), file=sys.stderr)
        return HARNESS
