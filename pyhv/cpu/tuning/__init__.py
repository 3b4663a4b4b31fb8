# SPDX-License-Identifier: GPL-2.0-only
"""The emulator's hot paths, changed from outside: in the unmodified wheel, by writes to its data alone.

The library calls its own functions through slots that may be written (`cpu/slots.py`). Behind a slot stands
a *stub*: a few native instructions that look whether the engine in question is one of ours and has been
tuned, do something better for it, and otherwise - for another user of Unicorn in this process, for an engine
of ours that is to stay plain - jump to the function that was asked for, with all registers as they were.

    slots.library() ── build-id, slots ──► gate.tuning() ── Tuning.attach ──► Block of one engine
                                             ▲    │  │
                          catalogue.PATCHES ─┘    │  └─ install.py: stubs into slots
                                                  └──── proofs on a throwaway engine (cpu/trial.py)

There is one gate (`gate.py`). Unless the library is exactly the build that the patches were written for,
each slot is there and leads where the loader lets it lead, and each patch's proof holds on a throwaway
engine, nothing is touched, and `pyhv doctor` says why. An engine is ours if its block is found: see
`block.py` for how, and for what is in it.

How to add a change: write a module beside `walks.py`, the shortest one, that defines a `Patch` (`form.py`),
and add it to `catalogue.PATCHES`. A patch declares

- `name` and `promise`, the row that `pyhv doctor` shows;
- `stubs`: a slot's name without the suffix `_x86_64`, and its code in Intel's syntax. `{next}` is the
  address of what stands behind the slot otherwise; `{real.NAME}` that of an exported function;
  `{word.NAME}` the offset of a word of the engine's block from the block's address. Code that arrives at
  its end, or jumps to the label `next`, goes to `{next}` by a jump through RAX: so leave the arguments
  alone until you know that the call is yours. `form.find_block` writes the lines that find the block.
- `words`: what it needs in each engine's block, with the values that an engine starts with;
- `pointers`: function pointers in the engine's own data that the library leaves null, and our code for them;
- `proof`: a function that runs code on a throwaway engine and raises `BrokenPromise` if it does not do what
  the patch promises, and otherwise leaves the engine to the next one. It is called at start-up, so it must
  take a millisecond or two.

Several patches may have a stub in the same slot: they stand in the order of `PATCHES`, the first one is
entered first, and its `{next}` is the second one. `{real.NAME}` is always the library's own function and
passes all stubs by.

Offsets into the library's structures are in `layout.py`, and only there.
"""
