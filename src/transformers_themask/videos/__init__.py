# SPDX-License-Identifier: Apache-2.0
"""Where frames come from and go to: files, folders, cameras, memory."""
