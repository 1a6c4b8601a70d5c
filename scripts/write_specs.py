"""Write what the door of `bitdistill` reads in place of the commands' parsers: `src/hf_bitdistill_cli/specs/`. Run it after a change of options."""

from hf_bitdistill.cli.describe import commands, describe
from hf_bitdistill_cli.spec import SPECS, file_of


def main() -> None:
    SPECS.mkdir(exist_ok=True)
    files = {file_of(words): describe(words).to_json() for words in commands()}
    for stale in set(SPECS.glob("*.json")) - set(files):
        stale.unlink()
    for file, text in files.items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(file)


if __name__ == "__main__":
    main()
