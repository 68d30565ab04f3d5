# SPDX-License-Identifier: Apache-2.0
"""Writing files and folders safely."""
