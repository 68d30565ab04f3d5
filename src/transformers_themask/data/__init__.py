# SPDX-License-Identifier: Apache-2.0
"""Videos on disk to training clips: reader, clip indices, augmentation, dataset, collator, synthetic videos."""
