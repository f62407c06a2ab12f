"""Diagnosis: from what differs to what to change."""
