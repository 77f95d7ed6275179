"""Write all tables and figures from the committed rows: ``python -m benchmarks.pages``."""

from benchmarks.pages import evidence, figures, readme

if __name__ == "__main__":
    readme.write()
    figures.draw_all()
    evidence.write()
