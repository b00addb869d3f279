"""What the code of methods' authors keeps, and how long it takes: the origin of the files in `golden`.

    python -m tests.methods.authors check      # whether it still gives what the files say
    python -m tests.methods.authors time       # beside ours, into results/benchmark/authors.md
    python -m tests.methods.authors make       # write the files anew

The code is read from clones of the repositories at the commits that the files name, in `--clones FOLDER`; without, they
are cloned into `clones` of this repository, which git ignores. DART's commit is in the fork xqy1111111/DART now, which
may stand in its place. Nothing of the code is here. `check` and `make` give it the pictures of `make_golden`, `time`
those of `crtc.benchmark.make_pictures`. It runs as it is among stand-ins for what it does not need here, such as
models; how it is called, and what is left out, is in `runs` and `inside`.
"""
