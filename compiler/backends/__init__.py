"""The ways to run a call: read `base` first. `registry` lists them in the order in which `auto` asks them."""
