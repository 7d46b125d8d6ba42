"""Tests of evalkit/metrics."""
