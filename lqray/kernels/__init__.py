"""The native libraries as files: what they are compiled from, how, and where they lie. Loading them is `lqray.ops`'s.

Nothing here imports torch before it compiles: setup.py and `lqray build-native` both build with it.
"""
