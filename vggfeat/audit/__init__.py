"""What is wrong with a set of images and labels, as far as descriptors can tell."""

from vggfeat.audit.checks import Audit, AuditSettings, audit_table

__all__ = ["Audit", "AuditSettings", "audit_table"]
