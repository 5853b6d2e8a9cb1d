"""Statistics of chains, one file a subject; `llc_fast.diagnostics` lists what is public."""
