"""Assigns into a foreign module (the second place that may): Triton's CPU interpreter, repaired and checked.

Stock, under TRITON_INTERPRET=1, it multiplies the bit patterns of bfloat16, truncates where a GPU rounds to
nearest even, reads 0 where a masked load leaves a lane undefined, dies with the process on an access out of
bounds, and runs programs in turn, which hides races. `install_interpreter` makes each true, or an error:

- memory.py: what a launch touches, checked against the tensors given and between programs
- bfloat16.py: bfloat16 in numpy
- repairs.py: the subclasses of Triton's classes
- internals.py: whether Triton's classes are the ones that those were written for

It does not show races within a program, tensor core and exp2.approx rounding, or speed. Atomics take part in
no check. NaN wins in maxima and minima, where a GPU drops it, so that undefined lanes do not vanish in them.
"""

from tpt_kernels.testing.memory import OutOfBoundsError, RaceError

__all__ = ["OutOfBoundsError", "RaceError", "install_interpreter"]


def install_interpreter(*, check_memory: bool = True, check_races: bool = True) -> None:
    """Repairs the interpreter for the rest of the process; call it before the first launch.

    From then on a launch raises OutOfBoundsError (check_memory) and RaceError (check_races; off for kernels
    whose programs wait for each other). Called again, it only sets the two checks.
    Raises RuntimeError where Triton was imported without TRITON_INTERPRET=1, or is one not known here.
    """
    from tpt_kernels.testing.internals import require_interpreter

    interpreter, autotuner = require_interpreter()

    from tpt_kernels.testing import repairs

    builder = interpreter.interpreter_builder
    if not isinstance(builder, repairs.RepairedBuilder):
        # The instances change their class: rewritten kernels and Triton's closures hold on to them.
        builder.__class__ = repairs.RepairedBuilder
        interpreter.interpreter_semantic.__class__ = repairs.RepairedSemantic
        interpreter.TritonSemantic = repairs.RepairedSemantic  # 3.6 makes one for each operation
        interpreter.GridExecutor = repairs.CheckedExecutor
        interpreter.ReduceOps, interpreter.ScanOps = repairs.RepairedReduceOps, repairs.RepairedScanOps
        interpreter._patch_lang = repairs.patch_once(interpreter._patch_lang)
        autotuner.Autotuner._bench = repairs.first_config
    builder.check_memory, builder.check_races = check_memory, check_races
