"""Blocking storage: journal, snapshots, model files, store. Sees bytes and arrays; no trio."""
