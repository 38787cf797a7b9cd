import subprocess
import sys

from c2ser_jax.host_memory import keep_freed_memory

PROGRAM = """
import ctypes
from c2ser_jax.host_memory import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.mallinfo.restype = [ctypes.c_void_p], Info

def held():
    array = libc.malloc(1 << 28)
    mapped = libc.mallinfo().hblkhd >= 1 << 28
    libc.free(array)
    return mapped, libc.mallinfo().arena >= 1 << 28

print(held(), keep_freed_memory(), held())
"""


def test_a_large_array_that_is_freed_stays_with_the_process():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert run.stdout == "(True, False) True (False, True)\n", run.stderr


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("c2ser_jax.host_memory.ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
