# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of `themask`: `run` of the module with its name. Their options are in `themask_command`."""
