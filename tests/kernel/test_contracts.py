"""The contracts that the fakes keep (tests/test_contracts.py), kept by Debian's kernel."""

from __future__ import annotations

from pathlib import Path

from tests.contracts import exporting
from tests.kernel.vm import VM

HERE = Path(__file__).parent.parent
IN_MACHINE = "PYTHONPATH=/root:/opt/usb-remote:/opt/py python3 -m tests.contracts.in_machine"


def put_contracts(machine: VM) -> None:
    for file in HERE.glob("contracts/*.py"):
        machine.put(f"/root/tests/contracts/{file.name}", file.read_text())


def test_the_kernel_exports_as_its_fakes_do(vm: VM) -> None:
    put_contracts(vm)
    result = vm.sh(f"{IN_MACHINE} exporting")
    assert result.rc == 0, result
    checks = (*exporting.CHECKS, *exporting.KERNEL_CHECKS)
    assert result.out.split()[1::2] == [check.__name__ for check in checks]
