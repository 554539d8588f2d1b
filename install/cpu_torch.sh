#!/bin/sh
# sh install/cpu_torch.sh PYTHON   installs torch, and only torch, into PYTHON's environment: the build for CPUs where
# there is one. Install what is left with pip afterwards. TORCH_INDEX says from where; see cpu_torch.py.
exec "${1:?which python? sh install/cpu_torch.sh .venv/bin/python}" "$(dirname "$0")/cpu_torch.py"
