# SPDX-License-Identifier: GPL-2.0-only
"""What `import pyhv` gives: machines and guests as a person, a test or the command line handles them."""
