"""Proofs from elsewhere about checkpoints of this log, kept in its folder ``anchors/``.

Who rewrites a log cannot rewrite what others have signed: a timestamp says that a checkpoint existed at a time, a
cosignature that someone saw it then.
"""
