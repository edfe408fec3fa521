"""Audit of images and labels by their descriptors: copies, near duplicates, doubtful labels, outliers."""

from vggfeat.audit.checks import Audit, AuditSettings, audit_table

__all__ = ["Audit", "AuditSettings", "audit_table"]
