# SPDX-License-Identifier: MIT
"""For tests of drivers, public: a fake Xen and a fake xenstored in this process.

Both are trusted because the suites in tests/conformance pass on them and on the real thing.
"""
