package era

import (
	"encoding/json"
	"io"
	"strconv"
)

// jsonSink writes a dump as JSON, with neighbours that are alike together:
//
//	{"uuid":"","block_size":8,"nr_blocks":16384,"current_era":5,
//	"writesets":[
//	{"era":4,"nr_bits":16384,"marked":[[10,12],[99,100]]}],
//	"era_array":[
//	[0,7,1],[7,16384,0]]}
//
// marked holds half-open ranges of blocks, era_array those of one era and the era.
type jsonSink struct {
	output
	count int // elements of the open list
	sets  int
	runs  runs
	at    uint64
	begin uint64
	era   Era
}

// NewJSON returns a Sink that writes a dump as JSON.
func NewJSON(w io.Writer) Sink { return &jsonSink{output: output{w: w}} }

// list adds [numbers...] to the open list.
func (j *jsonSink) list(numbers ...uint64) error {
	if j.count > 0 {
		j.buf = append(j.buf, ',')
	}
	j.count++
	open := byte('[')
	for _, n := range numbers {
		j.buf = append(j.buf, open)
		open = ','
		j.buf = strconv.AppendUint(j.buf, n, 10)
	}
	return j.text("]")
}

func (j *jsonSink) Begin(h Header) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return j.text(string(b[:len(b)-1]) + ",\n\"writesets\":[")
}

func (j *jsonSink) BeginWriteset(e Era, bits uint32) error {
	if j.sets > 0 {
		j.buf = append(j.buf, ',')
	}
	j.sets++
	j.at, j.count, j.runs = 0, 0, runs{}
	return j.text("\n{\"era\":" + strconv.FormatUint(uint64(e), 10) + ",\"nr_bits\":" + strconv.FormatUint(uint64(bits), 10) + ",\"marked\":[")
}

func (j *jsonSink) mark(r Range) error { return j.list(uint64(r.Begin), uint64(r.End)) }

func (j *jsonSink) Bits(words []uint64, n int) error {
	from := j.at
	j.at += uint64(n)
	return j.runs.words(words, from, j.at, j.mark)
}

func (j *jsonSink) EndWriteset() error {
	if err := j.runs.end(j.at, j.mark); err != nil {
		return err
	}
	return j.text("]}")
}

func (j *jsonSink) BeginArray() error {
	j.at, j.begin, j.count = 0, 0, 0
	return j.text("],\n\"era_array\":[\n")
}

func (j *jsonSink) Eras(eras []Era) error {
	for _, e := range eras {
		if e != j.era && j.at > j.begin {
			if err := j.list(j.begin, j.at, uint64(j.era)); err != nil {
				return err
			}
			j.begin = j.at
		}
		j.era = e
		j.at++
	}
	return nil
}

func (j *jsonSink) EndArray() error {
	if j.at > j.begin {
		return j.list(j.begin, j.at, uint64(j.era))
	}
	return nil
}

func (j *jsonSink) End() error {
	j.buf = append(j.buf, "]}\n"...)
	return j.flush()
}
