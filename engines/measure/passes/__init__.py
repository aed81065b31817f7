"""The passes of a measurement, one module each: `do(step)` visits a lane and puts what it finds into the record."""
