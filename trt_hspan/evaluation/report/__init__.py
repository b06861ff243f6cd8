"""The accuracy report: one self-contained HTML page. `evidence` gathers, `charts` draws, `page` writes."""

from trt_hspan.evaluation.report.evidence import EvidenceCollector, PictureEvidence
from trt_hspan.evaluation.report.page import ReportInput, Row, write_report

__all__ = ["EvidenceCollector", "PictureEvidence", "ReportInput", "Row", "write_report"]
