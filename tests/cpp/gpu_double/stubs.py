"""C++ classes that implement every function of TensorRT's interfaces by ending the program; a double overrides some.

python stubs.py NvInferImpl.h OUTPUT.h
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CLASSES = ("VRuntime", "VCudaEngine", "VExecutionContext")


def stubs_from_header(text: str) -> str:
    """The classes RuntimeStubs, CudaEngineStubs and ExecutionContextStubs."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"#if ENABLE_FEATURE.*?#endif", "", text, flags=re.S)
    lines = [
        "#include <NvInferRuntime.h>",
        "#include <cstdio>",
        "#include <cstdlib>",
        "namespace nvinfer1::apiv",
        "{",
    ]
    for name in CLASSES:
        found = re.search(rf"class {name} : public VRoot\s*\{{(.*?)\n\}};", text, re.S)
        if found is None:
            raise SystemExit(f"stubs.py: no class {name} in the header")
        functions = re.findall(r"virtual\s+([^;]*?)\s*=\s*0\s*;", found[1], re.S)
        lines.append(f"class {name[1:]}Stubs : public {name}\n{{\npublic:")
        for function in functions:
            signature = " ".join(function.split())
            called = signature.split("(")[0].split()[-1]
            lines.append(f"    {signature} override")
            lines.append(
                f'    {{ std::fputs("the double has no {name}::{called}\\n", stderr); std::abort(); }}'
            )
        lines.append("};")
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    header, output = sys.argv[1:]
    Path(output).write_text(stubs_from_header(Path(header).read_text()))
