"""The contracts that the fakes keep (tests/test_contracts.py), kept by Debian's kernel."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.contracts import exporting, importing, nodes
from tests.kernel.vm import VM
from tests.patience import patience

HERE = Path(__file__).parent.parent
IN_MACHINE = "PYTHONPATH=/root:/opt/usb-remote:/opt/py python3 -m tests.contracts.in_machine"


def passed(machine: VM, contract: str) -> list[str]:
    """Run a contract in a machine; the names of the checks that have passed."""
    for file in (*HERE.glob("contracts/*.py"), HERE / "serving.py"):
        machine.put(f"/root/tests/{file.relative_to(HERE)}", file.read_text())
    seconds = f"{patience(60):.0f}"
    result = machine.sh(f"{IN_MACHINE} {contract}", env={"CONTRACT_SECONDS": seconds})
    assert result.rc == 0, result
    return result.out.split()[1::2]


def names(checks: Iterable[object]) -> list[str]:
    return [getattr(check, "__name__", "") for check in checks]


def test_the_kernel_exports_as_its_fakes_do(vm: VM) -> None:
    checks = (*nodes.CHECKS, *exporting.CHECKS, *exporting.KERNEL_CHECKS)
    assert passed(vm, "exporting") == names(checks)


def test_the_kernel_imports_as_its_fakes_do(vm: VM) -> None:
    assert passed(vm, "importing") == names(importing.CHECKS)
