"""`python -m tools`: write all generated files."""

from tools import generated

for path, text in generated.files():
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(generated.ROOT))
