"""Blocking storage: journal, snapshots, model files, store. Handles bytes and arrays; every call blocks; no trio."""
