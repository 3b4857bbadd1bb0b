"""What the import of Gradio leaves out."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from gradio.mcp import GradioMCPServer


def test_components_write_no_stubs(tmp_path: Path) -> None:
    file = tmp_path / "widget.py"
    file.write_text("import gradio\n\n\nclass Widget(gradio.Textbox):\n    pass\n")
    spec = spec_from_file_location("widget", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    assert [path.name for path in tmp_path.glob("widget.*")] == ["widget.py"]


def test_the_library_for_mcp_is_not_imported() -> None:
    assert not hasattr(GradioMCPServer, "Server"), "the class has it if `mcp` could be imported"


def test_the_ui_process_does_not_import_gradio() -> None:
    program = "import sys, appliance.ui.__main__; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
