"""Launches of Triton kernels, taken down in place of being made: what would be compiled, for whom."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import triton

_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
}


@dataclass(frozen=True)
class Launch:
    kernel: triton.JITFunction
    grid: tuple[int, ...]
    signature: dict[str, str]
    constants: dict[str, object]
    multiples_of_16: tuple[int, ...]
    num_warps: int

    def compile(self, capability: int) -> triton.compiler.CompiledKernel:
        """Down to machine code for an NVIDIA device, which need not be there."""
        attributes = {(index,): [["tt.divisibility", 16]] for index in self.multiples_of_16}
        source = triton.compiler.ASTSource(self.kernel, self.signature, self.constants, attributes)
        target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        return triton.compile(source, target=target, options={"num_warps": self.num_warps})


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Every `kernel[grid](...)` in the block is added to the list; nothing runs."""
    launches: list[Launch] = []

    def launch_of(kernel: triton.JITFunction, grid: tuple[int, ...]):
        def record(*arguments, num_warps: int, **named) -> None:
            given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
            assert sorted(given) == sorted(kernel.arg_names)
            signature, constants, multiples = {}, {}, []
            for index, parameter in enumerate(kernel.params):
                value = given[parameter.name]
                if isinstance(value, torch.Tensor):
                    signature[parameter.name] = _TYPES[value.dtype]
                    multiples.append(index)  # the allocator's addresses are
                elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
                    signature[parameter.name] = "constexpr"
                    constants[parameter.name] = value
                else:
                    signature[parameter.name] = "i32" if abs(value) < 1 << 31 else "i64"
                    if value % 16 == 0 and not parameter.do_not_specialize:
                        multiples.append(index)
            launches.append(Launch(kernel, grid, signature, constants, tuple(multiples), num_warps))

        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.JITFunction, "__getitem__", launch_of)
        yield launches
