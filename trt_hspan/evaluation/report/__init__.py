"""The accuracy report: one self-contained HTML page. `evidence` gathers, `charts` draws, `page` writes."""
