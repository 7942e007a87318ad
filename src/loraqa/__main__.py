"""`python -m loraqa` is `loraqa`; `torchrun -m loraqa` starts several."""

from loraqa.cli import main

if __name__ == "__main__":
    main()
