"""Tests of evalkit/probing."""
