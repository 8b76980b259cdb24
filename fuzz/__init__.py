"""Hostile input: streams and metadata that nobody wrote, and what the codec makes of them.

    python -m fuzz --cases 100000        # seeded; `make fuzz` runs this and fuzz.coverage
    python -m fuzz --case 4711           # one case again, with its traceback

A case is a valid stream (`fuzz.corpus`) that was changed (`fuzz.mutations`): in its bytes, or in
one of the fields that it unpacks to. Nearly all get a right CRC-32 at the end, since a stream with
a wrong one is refused at once and tests nothing else. Cases of the second sort are changed metadata
(`fuzz.configs`): the codec's configuration, and the JSON of a small store.

What must never happen, whatever the bytes (`fuzz.judging`):

- another exception than a ``ValueError`` of ours, a warning of numpy's, a crash, a case that takes
  longer than its limit;
- more than twice the memory that a valid stream of the declared shape takes, and a constant;
- *wrong pixels*. CRC-32 is no signature: who repairs it has written another valid stream, and the
  decoder cannot know. What it owes is that pixels are those that the stream describes, and that an
  array does not take a stream that describes something else than the array. So pixels are wrong
  where a stream decodes without an error, they differ from those of the stream that it was made
  of, and neither

  1. the array's codec refuses it (`ChunkCoder.check_header`: shape, dtype, bands, nodata, offset,
     scale, compression, model, weights, quality, forecast); nor
  2. it says something else of the image than the original: extent, grids, ranges, special pixels,
     or the checksums of the latents, which a forger can repair as he can the CRC-32.

  Decisions, payload, margin, ``told`` and what belongs to the framing describe no image: where only
  they differ, pixels are the same or there is an error. And in every case what is decoded agrees
  with what the stream says: shape, dtype, fill beyond the extent, special pixels bit for bit, no
  nodata elsewhere, values within the ranges. A stream whose CRC-32 is wrong never decodes.
"""
